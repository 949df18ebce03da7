"""The Grafana dashboard asks only for what the server exports."""
