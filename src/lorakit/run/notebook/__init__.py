"""Commands as functions of Python: they take what a notebook holds and call the commands' use cases."""
