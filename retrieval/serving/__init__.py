"""A service to search by picture: `retr serve`.

`collection` holds the indices that are served, `limits` keeps what comes in within bounds, `app`
says what is asked for at which address, and `page/` is what a browser shows.
"""
