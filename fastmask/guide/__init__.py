"""The guide: the manual, a chapter per file, which `fastmask guide` shows and README links to."""
