"""The version of this package: what files and results say wrote them."""

VERSION = "0.1.0"
