"""What a plugin's process does (:mod:`.serve`): its parts are made here, and asked here, by number."""
