"""Everything around the services: commands, supervisors, engines, reports."""
