"""From images to results: scores, controls, membership scores, and the tables beside them."""
