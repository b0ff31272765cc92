from reports.build import main

raise SystemExit(main())
