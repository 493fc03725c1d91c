"""What a run needs of the machine: device, several processes, progress, interrupts and error messages."""
