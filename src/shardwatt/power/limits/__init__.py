"""Power limits of GPUs: set, remembered, and set back."""
