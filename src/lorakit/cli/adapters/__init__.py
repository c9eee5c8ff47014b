"""`lorakit adapters …`: one short file a command. The table of them is in cli/main.py."""
