"""Processes of their own for the code of plugins: who asks, what is asked, and what stands in for their parts here.

The owner of a run asks by :mod:`.pool`; :mod:`.standins` look like parts and ask; :mod:`..answering` is what runs in
the other process. Messages hold JSON and tensors (:mod:`.channel`): nothing that comes back is unpickled.
"""
