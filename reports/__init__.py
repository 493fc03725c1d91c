"""The files that a run leaves: tables, metrics, curves, manifests, figures and report.html."""
