"""The analysis of a whole scan report: findings in, a report with the findings it rests on out."""
