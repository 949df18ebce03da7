"""The synchronous client; `cairn_client.aio` is its twin, file by file."""
