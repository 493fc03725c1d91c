"""The commands of the command line: stages, reruns, budgets of minutes and the figure for a paper."""
