"""Sites, kernel maps and convolutions on them: the only place that imports spconv."""
