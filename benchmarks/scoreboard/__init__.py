"""The scoreboard behind `make capture-matrix`: what is captured, and how well each capture stands its checks.

`jobs` says what is measured · `capture_job`, `export_job` and `cost_job` do one job each in a process of its own ·
`counting` holds our FLOPs against torch's counter · `workers` runs jobs in parallel under limits of time and memory ·
`results` keeps what was measured · `page` writes docs/models.md from it.
"""
