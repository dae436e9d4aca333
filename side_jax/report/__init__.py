"""From results to a page: findings, tables, figures and the gallery."""
