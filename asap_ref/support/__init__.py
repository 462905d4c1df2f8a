"""What every file may use and no reader must open: array modules, contracts of arguments, files, tables."""
