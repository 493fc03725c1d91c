"""What a run needs around its method: device, processes, progress, interrupts and errors."""
