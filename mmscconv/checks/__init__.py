"""Checks of the input before anything long starts: environment, settings, files, images, annotations.

Each raises :class:`mmscconv.errors.UserError` or warns. The engine calls them; none of them imports the engine.
"""
