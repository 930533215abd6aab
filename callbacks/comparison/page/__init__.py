"""The page of a comparison: one HTML file that holds everything, made from the run directories of one or more tests.

It reads nothing but files, so that a page of several runs is made as one of a single run is. `page.html`, `page.css`
and `page.js` are what the browser gets beside plotly.
"""
