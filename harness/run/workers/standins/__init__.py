"""Stand-ins for the parts of plugins: here they look like any part, and every question goes to the plugin's process."""
