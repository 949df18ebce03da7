"""One file per resource: each validates, asks, and responds."""
