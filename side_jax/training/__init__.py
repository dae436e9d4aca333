"""Training one network: loop, losses, validation, calibration and monitor."""
