"""Devices and processes: joining, placing arrays, CPU settings and preemption."""
