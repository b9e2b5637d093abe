-- Where the limits stand.
-- Reply `levels`

return levels()
