"""Pages as single HTML files: templates, style, plots and curves."""
