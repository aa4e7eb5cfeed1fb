"""Candidates, measurement, accuracy guard, results database."""
