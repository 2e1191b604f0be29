"""The library and the arithmetic that an encoder's network runs in, chosen by measurement.

`choice.runner_for` returns an encoder that runs fastest on this machine and keeps the promise of a
`Precision`: `agreement` states the promises, `race` measures, `decision` remembers.
"""
