"""How one network is trained: loop, losses, validation, calibration and monitor."""
