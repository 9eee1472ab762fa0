"""How sure a fit is: resampling by name, profile likelihood, covariance, and intervals beyond the data."""
