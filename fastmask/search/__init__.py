"""Search: settings by many runs, and bodies by screening."""
