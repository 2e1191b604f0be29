"""The service of `retr serve`: search by image.

`app` lists the addresses, `collection` and `served` hold the indices, and `page/` is
what a browser shows. A request passes the middlewares `measures`, `json_errors`, Starlette's host
check, `access`, Starlette's body limit and `queue`, in this order.
"""
