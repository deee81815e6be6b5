"""Every figure that an accelerator has to give, in one run; see README.md beside this file."""
