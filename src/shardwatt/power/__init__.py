"""Meters: joules, watts and utilisation of a job's own devices, and what each reading is worth."""
