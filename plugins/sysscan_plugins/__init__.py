"""The bundled plugins, found by entry point exactly as a stranger's would be."""
