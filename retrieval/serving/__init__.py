"""The service of `retr serve`: search by images and words.

`app` lists the addresses, `forms` and `asked` hold what a request asks for, `collection`, `served`
and `encoding` hold the indices and their encoders, and `page/` is what a browser shows. A request
passes the middlewares `measures`, `json_errors`, Starlette's host check, `access`, Starlette's body
limit and `queue`, in this order.
"""
