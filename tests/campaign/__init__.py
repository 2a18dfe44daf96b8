"""What goes wrong around the library, on purpose and often: kills, damaged files, odd inputs, forged texts, and more.

`make campaign` runs the large version of every part and prints one table. A part is a line of `parts.py`.
"""
