"""What a run leaves: tables, metrics, manifests, figures and the page for a browser."""
