"""Questions that compare formats: in order of worth, searched under a budget, planned for, overtaking.

Every answer comes from one voice (`voice`): a saved fit, or one published fit, never two of them at once.
"""
