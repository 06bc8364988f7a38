"""Plans: programs compiled for TPUs that need not be present, and what they would need there."""
