"""`python -m lorakit` is the `lorakit` command."""

from lorakit.cli.main import main

if __name__ == "__main__":
    main()
