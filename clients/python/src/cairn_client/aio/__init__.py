"""The asynchronous client; `cairn_client.sync` is its twin, file by file."""
