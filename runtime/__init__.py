"""The machine that a run uses: device, processes, progress, interrupts and errors."""
