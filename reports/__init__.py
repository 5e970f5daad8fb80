"""From a run to what people read: tables, the propagation report, and the site."""
