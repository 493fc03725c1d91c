"""What the command line can be asked for: stages, reruns, budgets of minutes and the figure for a paper."""
