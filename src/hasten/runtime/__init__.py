"""Deploy side: the artifact file and the session that runs it. Needs NumPy alone."""
