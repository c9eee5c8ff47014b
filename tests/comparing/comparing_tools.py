"""What the tests of comparisons share."""


def without_measured(value):
    """A result without what a process measured: seconds and bytes."""
    if isinstance(value, dict):
        return {k: without_measured(v) for k, v in value.items() if k != "measured"}
    return [without_measured(v) for v in value] if isinstance(value, list) else value
