from peoplecounter.deploy.cli import main

main()
