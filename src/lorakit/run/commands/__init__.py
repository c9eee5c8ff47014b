"""One use case a file: what each command does, without a word of how it is shown."""
