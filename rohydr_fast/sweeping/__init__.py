"""Many runs for one table or figure: planned, run side by side, gone on with, never run twice."""
