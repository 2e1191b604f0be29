"""`retr bench`."""
def bench() -> None:
    """Bench."""
